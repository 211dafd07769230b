"""Overrides of the command line: paths are taken literally, though Hydra would parse them."""

import os
import re
import sys
from collections.abc import Sequence

from gender_cls.errors import UserError, check_extra
from gender_cls.inference.arguments import shell_line, start_of
from gender_cls.training.config import RENAMED

PATHS = (
    "data.root", "data.csv", "model.weights", "features.dir", "ckpt_path", "run_dir", "hydra.run.dir",
    "hydra.sweep.dir", "logger.tensorboard.save_dir", "logger.csv.save_dir", "logger.wandb.save_dir",
)  # fmt: skip
QUOTED = re.compile(r"""'(\\.|[^'\\])*'|"(\\.|[^"\\])*\"""")
SWEEPS = re.compile(r"(choice|range|interval|glob|shuffle|sort|tag)\(.*\)")  # functions of Hydra's grammar


def quote_paths(overrides: Sequence[str]) -> list[str]:
    """Return the overrides with the values of `PATHS` in Hydra's quotes, and `~` in them expanded.

    `null`, what is quoted already, sweep functions and interpolations stay as they are, and so do the commas between
    the paths of a sweep. So quoting twice changes nothing.
    """
    return [_quote(override, is_sweep(overrides)) for override in overrides]


def is_sweep(overrides: Sequence[str]) -> bool:
    """Return whether the overrides start a sweep, in which commas separate values."""
    if "hydra.mode=RUN" in overrides:
        return False
    searches = any(override.startswith("hparams_search=") and override[15:] != "null" for override in overrides)
    return searches or bool({"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(overrides))


def _quote(override: str, sweep: bool) -> str:
    key, equals, value = override.partition("=")
    if key.lstrip("+") not in PATHS or not value or SWEEPS.fullmatch(value):
        return override
    if sweep and "," in value and not key.startswith("hydra."):  # which is not swept over
        paths = re.finditer(rf"\s*(?:{QUOTED.pattern})\s*(?=,|$)|(?:\$\{{[^}}]*\}}|[^,])+", value)
        return key + equals + ",".join(_quoted(path[0].strip()) for path in paths)  # Hydra passes over blanks, too
    return key + equals + _quoted(value)


def _quoted(value: str) -> str:
    if value == "null" or "${" in value or QUOTED.fullmatch(value):
        return value
    path = os.path.expanduser(value)
    escaped = re.sub(r"(\\*)'", lambda found: 2 * found[1] + r"\'", path)  # what Hydra takes back
    ending = re.search(r"\\*$", escaped)
    return f"'{escaped}{ending[0] if ending else ''}'"


def literal(override: str) -> str:
    """Return an override without Hydra's quotes around a path: as a person would write it for `quote_paths`."""
    key, equals, value = override.partition("=")
    if key.lstrip("+") not in PATHS or not QUOTED.fullmatch(value):
        return override
    quote, inner = value[0], value[1:-1]
    plain = re.sub(rf"(\\*)\\{quote}", lambda found: found[1][: len(found[1]) // 2] + quote, inner)
    ending = re.search(r"\\*$", plain)
    plain = plain[: len(plain) - len(ending[0]) // 2] if ending else plain
    return f"{key}{equals}{plain}" if _quoted(plain) == f"'{value[1:-1]}'" else override


def train_command(overrides: Sequence[str]) -> str:
    """Return the command of a single run with some overrides, and with the folder of a user's own configuration."""
    if is_sweep(overrides):
        overrides = [*overrides, "hydra.mode=RUN"]
    own = [first for first in zip(sys.argv, sys.argv[1:]) if first[0] in ("--config-dir", "-cd")]
    return shell_line([*start_of("train"), *(word for pair in own for word in pair), *map(literal, overrides)])


def check_overrides(overrides: Sequence[str]) -> None:
    """Raise a `UserError` for options of earlier versions and a missing sweeper, before Hydra does in its own words."""
    choices = ("data=", "--config-", "-cd", "-cn")  # by which data=manifest is given, here or in a file
    chosen = any(override.lstrip("+").startswith(choices) for override in overrides)
    for override in overrides:
        plain = override.lstrip("+~")
        if plain.startswith("data.csv=") and not chosen:
            raise UserError("conflict", f"{override} belongs to data=manifest; give data=manifest as well")
        key, _, values = plain.partition("=")
        for old, new in RENAMED.items():
            if key == old or key.startswith(f"{old}.") or old in [f"{key}={value}" for value in values.split(",")]:
                raise UserError("renamed", f"{override}: {old} has become {new}")
        if key == "model.scheduler" and values != "null":
            raise UserError("renamed", f"{override}: choose by model/scheduler=cosine, plateau, one_cycle or none")
        if key.startswith("data.classes."):
            raise UserError(
                "bad-value", f"{override}: give both classes at once: data.classes={{female: [0], male: [1]}}"
            )
        if plain == "model=efficientnet_lite0" and "experiment=robust" in overrides:
            raise UserError("renamed", f"experiment=robust {plain} has become experiment=robust_efficientnet_lite0")
        if plain == "hparams_search=optuna":
            check_extra(override, "optuna", "hydra_plugins", "hydra_plugins.hydra_optuna_sweeper")

"""The command line of training: Hydra composes, `run.train` does the work, and an error is one line."""

import os
import sys
import traceback
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict

from gender_cls.errors import UserError, printable, writing
from gender_cls.inference.arguments import run_main
from gender_cls.training.config import config_dir
from gender_cls.training.overrides import check_overrides, quote_paths, train_command
from gender_cls.training.run import Interrupted, shown_path, train
from gender_cls.training.sweep import ERROR_FILE

WORST = 0.0  # objective of a job without one: sweepers need a number, and no macro-F1 is lower


@hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="train")
def main(cfg: DictConfig) -> float | None:
    """Run one job and return its objective; a failed job of a sweep is a row of its table and does not end it."""
    job = HydraConfig.get()
    os.chdir(job.runtime.cwd)  # with hydra.job.chdir, paths are still relative to where the user is
    run_dir = Path(job.runtime.output_dir)
    in_sweep = job.mode == RunMode.MULTIRUN
    with open_dict(cfg):
        cfg.run_dir = str(run_dir) if in_sweep or cfg.run_dir is None else cfg.run_dir
        cfg.sweep_job = job.job.num if in_sweep else None
    error_file = run_dir / ERROR_FILE
    error_file.unlink(missing_ok=True)  # of an earlier sweep in the same folder
    try:
        score = train(cfg)["objective"]["value"]
        return WORST if score is None else float(score)  # where a split has no image of a class
    except Interrupted as stop:
        say_how_to_resume(stop, list(job.overrides.task), Path(job.sweep.dir, "sweep.csv") if in_sweep else None)
        sys.exit("stopped")
    except KeyboardInterrupt:
        sys.exit("stopped")
    except Exception as error:
        mendable = error if isinstance(error, UserError) else None
        if mendable is None or os.environ.get("HYDRA_FULL_ERROR") == "1":  # a bug is shown whole; a sweep goes on
            traceback.print_exc()
        if not in_sweep:
            raise SystemExit(1 if mendable is None else f"error: {mendable}") from mendable
        line = " ".join(str(mendable or f"{type(error).__name__}: {error}").split())
        error_file.write_text(line + "\n", encoding="utf-8", errors="backslashreplace")
        print(f"this job failed: {printable(line)}", file=sys.stderr)
        return WORST
    finally:
        if "wandb" in sys.modules:  # else the next job of a sweep would log to this one's run
            sys.modules["wandb"].finish()


def run() -> None:
    """Run the command line (the console script)."""
    run_main(start)


def start(overrides: list[str]) -> int:
    """Check overrides, quote the paths in them, and let Hydra run the jobs."""
    check_overrides(overrides)
    sys.argv[1:] = quote_paths(overrides)
    for key, _, given in (override.partition("=") for override in overrides):
        if key in ("hydra.run.dir", "hydra.sweep.dir") and "${" not in given:
            with writing(f"{key}={given}", "give a folder that can be written"):
                Path(os.path.expanduser(given.strip("'\""))).mkdir(parents=True, exist_ok=True)
    main()
    return 0


def say_how_to_resume(stop: Interrupted, overrides: list[str], sweep: Path | None = None) -> None:
    """Print where training stopped and the command that goes on from the last whole epoch; of a sweep, its table."""
    if sweep and sweep.exists():
        print(f"\nthe jobs that had ended are in {printable(shown_path(sweep))}")
    if not stop.ckpt_path and sweep:
        print(f"\nstopped {stop}; this job starts anew")
        return
    if not stop.ckpt_path:
        print(f"\nstopped {stop}; no checkpoint is saved yet to resume from")
        return
    kept = [override for override in overrides if not override.startswith(("ckpt_path=", "hydra.run.dir="))]
    again = train_command([*kept, f"ckpt_path={shown_path(stop.ckpt_path)}"])
    print(f"\nstopped {stop}; to resume from the last whole epoch:\n{again}")

"""Entry point of prediction; see `python predict.py --help`."""

from gender_cls.inference.cli import run

if __name__ == "__main__":
    run()

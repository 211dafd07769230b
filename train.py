"""Train a head on a frozen ResNet-18, or more of it, evaluate and save it (`python train.py --help` shows how)."""

from gender_cls.training.cli import run

if __name__ == "__main__":
    run()

"""The recipe as most people write it: ImageFolder, Pillow transforms, a DataLoader without workers, fp32.

`benchmarks/training.py` compares the project with it; it imports nothing of the project.

    python benchmarks/plain.py data/facecom --weights resnet18.pth --epochs 2
"""

import argparse
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, WeightedRandomSampler
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.models import resnet18


def main() -> None:
    """Train the head and print the seconds and the macro-F1 of each epoch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="folder with train/ and val/")
    parser.add_argument(
        "--weights", help="state dict of a torchvision resnet18; without it the ImageNet weights are downloaded"
    )
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--all", action="store_true", help="train the whole network, not only the head")
    arguments = parser.parse_args()
    torch.manual_seed(0)

    to_input = [transforms.ToTensor(), transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
    augment = [transforms.RandomHorizontalFlip(), transforms.ColorJitter(0.2, 0.2, 0.2), transforms.GaussianBlur(3)]
    resize = transforms.Resize((224, 224))
    train = ImageFolder(f"{arguments.root}/train", transforms.Compose([resize, *augment, *to_input]))
    val = ImageFolder(f"{arguments.root}/val", transforms.Compose([resize, *to_input]))
    counts = torch.bincount(torch.tensor(train.targets))
    sampler = WeightedRandomSampler([1 / counts[label].item() for label in train.targets], len(train))
    train_loader = DataLoader(train, batch_size=32, sampler=sampler)
    val_loader = DataLoader(val, batch_size=32)

    net = resnet18(weights=None if arguments.weights else "IMAGENET1K_V1")
    if arguments.weights:
        net.load_state_dict(torch.load(arguments.weights, weights_only=True))
    if not arguments.all:
        net.requires_grad_(False).eval()  # without eval(), as often seen, BatchNorm's statistics change
    net.fc = nn.Linear(512, 1)
    loss_of = nn.BCEWithLogitsLoss(pos_weight=len(train) / (2 * counts[1]))
    optimizer = torch.optim.Adam((net if arguments.all else net.fc).parameters(), lr=1e-4)

    for epoch in range(arguments.epochs):
        started = time.perf_counter()
        net.train(arguments.all)
        for images, labels in train_loader:
            loss = loss_of(net(images).squeeze(1), labels.float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        net.eval()
        confusion = torch.zeros(2, 2)
        with torch.no_grad():
            for images, labels in val_loader:
                predictions = (net(images).squeeze(1).sigmoid() > 0.5).long()
                confusion.view(-1).index_add_(0, 2 * labels + predictions, torch.ones(len(labels)))
        hits = confusion.diagonal()
        f1 = 2 * hits / (confusion.sum(0) + confusion.sum(1))
        seconds = time.perf_counter() - started
        print(f"epoch {epoch} seconds {seconds:.2f} macro-F1 {f1.mean():.4f}", flush=True)
    torch.save(net.state_dict(), "Binary_Classification_model.pth")


if __name__ == "__main__":
    main()

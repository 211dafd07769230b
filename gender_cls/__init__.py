"""Female or male in face pictures: a frozen ResNet-18 and one linear layer on top."""

CLASSES = ("female", "male")  # the index is the label, as ImageFolder sorts the folders

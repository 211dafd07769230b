"""The two labels of the data. They say how a data set filed a face, not who someone is."""

CLASSES = ("female", "male")  # the index is the label, as ImageFolder sorts the folders

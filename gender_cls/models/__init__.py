"""The network, the weights it starts from, and the engines that run its frozen backbone."""

"""What all engines share: the protocol, number types, stopping, finding a GPU."""

"""What all engines share: the protocol, number types, sizes, stopping."""

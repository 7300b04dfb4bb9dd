"""What a device could do at best: its rates and the roofline."""

"""What makes integers of a matrix, one file each; a scheme's row names its quantizer."""

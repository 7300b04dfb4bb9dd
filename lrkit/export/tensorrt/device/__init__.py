"""The builder itself. These files import nothing else of lrkit: they also become the script for devices without lrkit."""

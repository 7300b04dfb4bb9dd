"""The battery: what every family of backbones has to show, on a tiny checkpoint in its published layout."""

"""Laws: what holds for every input, tried on inputs that hypothesis draws."""

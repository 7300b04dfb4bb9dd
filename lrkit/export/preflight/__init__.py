"""What a target would reject of a graph, before it is sent there."""

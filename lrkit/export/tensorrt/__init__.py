"""TensorRT engines from a program: jobs, the builder in a process of its own, into the bundle."""

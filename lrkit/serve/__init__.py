"""`lrkit serve`: a model behind OpenAI's chat completions over HTTP, on uvicorn and starlette."""

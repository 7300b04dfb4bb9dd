"""Reports as pages: Markdown, HTML, plots."""

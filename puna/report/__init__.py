"""Reports: Markdown, and pages of HTML that need nothing else: no script, no other file."""

"""Reports as pages of HTML that need nothing else: no script, no other file, light and dark."""

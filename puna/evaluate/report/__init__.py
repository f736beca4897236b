"""An evaluation as a page, as text and for programs, beside what others have scored."""

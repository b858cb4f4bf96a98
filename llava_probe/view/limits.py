"""How large a figure gets, and how much of a long result it draws. What it leaves out it tells."""

#: Inches of a figure's width: less holds no label, more no printer prints.
WIDTH_LIMITS = (0.5, 50)
#: Dots per inch that a figure may be saved with.
DPI_LIMIT = 1200
#: More maps than this make no readable sheet.
SHEET_LIMIT = 96
#: Lines of bars, and of shaded words: forty inches, which can be drawn at ``DPI_LIMIT`` (Agg has 65,536 pixels a side).
BAR_LINES, WORD_LINES = 24, 200

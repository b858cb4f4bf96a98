"""Everything that turns results into something to look at; nothing here computes a result."""

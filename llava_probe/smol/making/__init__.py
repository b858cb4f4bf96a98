"""How the smol model's adapter was made: ``make smol``."""

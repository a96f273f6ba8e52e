"""The chat: its conversation (`session.py`), its terminal (`commands.py`), and its panel."""

"""Drawing: palette, bars, lines, curves, pictures."""

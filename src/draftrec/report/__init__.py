"""Reports made of blocks (text, table, figure, cards), shown on a terminal and as a page."""

"""report.html: what its pictures show, how they are drawn, and the page around them."""

"""What is written about runs: the report of one, and the page that compares many."""

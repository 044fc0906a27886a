"""What it costs: figures of whole commands and of single tables, taken side by side in one run."""

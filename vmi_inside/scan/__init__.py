"""Looking through bytes: strings, YARA rules. Where the bytes come from is left to others."""

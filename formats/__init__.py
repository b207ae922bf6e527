"""What a network is handed over as, and how a handed-over one runs: docs/design/formats.md."""

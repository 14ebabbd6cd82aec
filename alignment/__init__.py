"""On-policy preference learning: DPO, PDFR, REBEL, RDRC and their offline twins (2601.08421)."""

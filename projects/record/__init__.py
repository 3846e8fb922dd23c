"""The public record: the hash chain of entries, and redaction."""

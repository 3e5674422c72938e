"""The public record of bugs, and what shows each of them again."""

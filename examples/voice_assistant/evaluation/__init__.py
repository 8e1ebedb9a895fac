"""How well the assistant hears: speakers, noise, and the programs that count."""

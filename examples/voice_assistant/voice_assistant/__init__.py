"""A voice assistant for a small board: microphone, wake word, speech recognition, a local language model, a voice."""

"""Miniature speech corpora, synthesised offline with espeak-ng and written in the layout of a
public corpus.

`english`, `mandarin` and `sentences` write the text, `accents` and `speakers` cast the voices,
`plan` says who says what, `espeak` speaks, `acoustics` adds room, noise and microphone, `reading`
and `dialogue` make recordings of it, `render` runs that on several cores, and one module per corpus
(`librispeech`, `aishell1`, ...) lays the result out on disk. The command is
`tools/make_mini_corpus.py`.
"""

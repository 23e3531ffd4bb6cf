"""Miniature speech corpora, synthesised offline with espeak-ng and written in the layout of a public corpus.

`english` and `sentences` write the text, `speakers` casts the voices, `plan` says who reads what, `espeak` speaks,
`acoustics` adds room, noise and microphone, `render` runs it on several cores, and one module per corpus
(`librispeech`) lays the result out on disk. The command is `tools/make_mini_corpus.py`.
"""

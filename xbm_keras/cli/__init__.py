"""The commands: one file each. They look down on all other folders, and nothing imports them.

- train: a config becomes an exported model
- tune: a search, and its best config from training to export
- preview: before a run, whether it is worth it
- evaluate, embed, compress, index, export, cache, serve: what is done with a finished run
- duplicates, labels: which labels may be wrong, and which are suggested
- queries: what an index is asked for
- parsers, arguments: what the commands are told, and what they say of mistakes in it; terminal: what else they say
"""

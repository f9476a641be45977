"""People's answers: formats of labelling tools, votes of several people, and a page to label on.

Everything here works on plain data. What a study does with it is in `svp.study`.
"""

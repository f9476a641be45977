"""What unlabelled rows should be predicted as: a rule per method, for images and for embeddings.

A rule turns logits of weak views into labels, and says how much each counts. It serves one network
on images (`svp.finetune`) and several networks at once on stored features (`svp.proxies`).
"""

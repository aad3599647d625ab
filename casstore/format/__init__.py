"""The code twin of docs/FORMAT.md: key names, magic numbers, values ↔ bytes. Its only place.

`guard` envelopes that survive a damaged byte · `segments` of the log · `packs` frames and footers ·
`nodes` of version trees · `rows` of the view · `layout` keys and the store's ``format`` object.
"""

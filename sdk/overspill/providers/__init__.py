"""Third parties' APIs as engines: the last resort, and only with consent to this one interaction.

``openai_api`` speaks the protocol that most of them speak, ``grants`` keeps the book of what a
person consented to, and ``granted`` lets nothing out without an entry in it. A provider's key is
no permission: without a grant it is never even read by what sends.
"""

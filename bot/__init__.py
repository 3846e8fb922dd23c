"""The Discord bot: commands with their forms and buttons, cards with their plots, and the delivery of entries as posts.

The bot holds no rules: who may do what is decided in projects/ and broker/.
"""

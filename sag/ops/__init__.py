"""Operations: what a client can ask for, each declared once; and the one way in which all of them are called."""

"""ONE RUN"""

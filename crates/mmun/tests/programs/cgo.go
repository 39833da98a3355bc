package main

// #include <stdlib.h>
// static void touch(void) { free(malloc(1)); }
import "C"

func init() { C.touch() }

#ifndef TEXT_H
#define TEXT_H

#include <stdbool.h>
#include <stddef.h>

bool is_utf8(const unsigned char *bytes, size_t length);
/* As a string of JSON. Bytes that are no UTF-8 become U+FFFD. */
void print_text(const unsigned char *bytes, size_t length);
void print_base64(const unsigned char *bytes, size_t length);

#endif

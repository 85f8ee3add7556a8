/* Stands in for the guest agent: boots, and then never says a word. */
#include <unistd.h>

int main(void) {
  for (;;) pause();
}

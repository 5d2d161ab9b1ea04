/* SPDX-License-Identifier: MIT */
/* Linked statically: percpu stat must refuse it. */
int main(void)
{
	return 0;
}

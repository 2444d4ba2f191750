-- Wakes workers that wait for messages of a queue, those that run the fewest tasks first.
--
-- ready   sag.ready.<queue>  sorted set  woken workers scored by now; their lists sag.wake.<owner>
--                                        get an entry
-- number  of messages that were sent
-- below   only workers that run fewer tasks
-- Returns the number of woken workers.
local ready = unpack(KEYS)
local number, below = unpack(ARGV)
local woken = 0
while woken < tonumber(number) and wake_one(ready, below) do woken = woken + 1 end
return woken

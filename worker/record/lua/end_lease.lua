-- Ends the lease of a running task whose owner is known to be dead, so that it can be claimed now.
--
-- task   ns:{id}:task  hash  lease_until written
-- owner
-- Returns 1, or 0 when the task has another owner.
local task = unpack(KEYS)
local owner = unpack(ARGV)
local held = redis.call('HMGET', task, 'owner', 'status')
if held[1] ~= owner or held[2] ~= 'running' then return 0 end
redis.call('HSET', task, 'lease_until', '0')
return 1
